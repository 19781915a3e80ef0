"""What differs between the backends: how gradients are taken, memory is used.

Each module has a class, `Trainer`, mixed into `UEGRModel`: its `train_step` has
the model's `training_step(data)` run, which calls back what follows.

`differentiate(function, variables, watch_embedding)` calls `function(watch)`,
which gives `(loss, auxiliary)` and passes the embedding through `watch` (`None`
if `watch_embedding` is false). It returns

    (loss, auxiliary, gradients, embedding_gradient)

with the gradients of the loss as the optimizer scales it: one for each of
`variables` and one for the embedding, each `None` where the loss does not
depend on it; so is that of an embedding that is not watched. For variables JAX
gives zeros instead.

`add_gradients(gradient, other)` adds two gradients of one variable.

`apply_gradients(gradients)` runs the optimizer, with what the replicas' batches
give together.

`replicas` is the number of replicas whose gradients the optimizer adds up, each
of a loss that is divided by this number; 1 where no such sum is taken.

`mean_over_replicas(tensors)` gives the means over all replicas of tensors, of
which each replica has its own; `None` stays `None`.

`compile_inference(function)` gives a compiled `function(data)` that reads the
model's variables and leaves them as they are. `traces_each_shape` says whether
`data` of a new shape takes it long.

`fetch_state()` lets the variables hold their values, also within `fit`.

Next to it are two functions for `SaliencyMaskedOptimizer`.

`restore(variable, previous, scores, threshold)` puts the `previous` value back
into the entries that are not selected: only those whose score, in `Scores` of
the variable's shape, is finite and reaches the threshold keep the new one.

`run_either(condition, function, other_function, touched)` runs one of two
functions that assign variables; `touched` lists all that either may touch.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_uegr.trainers import tensorflow_trainer as active
elif keras.backend.backend() == "jax":
    from keras_uegr.trainers import jax_trainer as active
elif keras.backend.backend() == "torch":
    from keras_uegr.trainers import torch_trainer as active
else:
    raise ImportError(
        "`keras_uegr` trains on the backends tensorflow, jax and torch. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}"
    )

Trainer = active.Trainer
restore = active.restore
run_either = active.run_either
