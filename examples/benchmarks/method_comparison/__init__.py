"""The runner of `compare_methods.py` and `ablation.py`.

methods.py      what is compared
cells.py        one method, data set and seed: its settings and its file
requirements.py  loads the data, and tries what the measurements need
training.py     trains one cell
measurement.py  measures the trained model
matmul_precision.py  how exactly it multiplies
grid.py         goes over the cells, and skips those that are finished
summary.py      means, intervals and paired tests over the seeds
report.py       the Markdown table and the JSON
figures.py      the two figures
"""
