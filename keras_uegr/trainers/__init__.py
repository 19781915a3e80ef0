"""What differs between the backends: how gradients are taken.

Each module has one class, `Trainer`, mixed into `UEGRModel`.

`differentiate(function, variables, watch_embedding)` calls `function(watch)`,
which gives `(loss, auxiliary)` and passes the embedding through `watch` (`None`
if `watch_embedding` is false). It returns

    (loss, auxiliary, gradients, embedding_gradient)

with the gradients of the loss as the optimizer scales it: one for each of
`variables` (`None` where the loss does not depend on it), and `None` for an
embedding that is not watched.

`add_gradients(gradient, other)` adds two gradients of one variable.

`apply_gradients(gradients)` runs the optimizer.

`compile_inference(function)` gives a compiled `function(data)` that reads the
model's variables and leaves them as they are.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_uegr.trainers.tensorflow_trainer import Trainer as Trainer
elif keras.backend.backend() == "jax":
    from keras_uegr.trainers.jax_trainer import Trainer as Trainer
elif keras.backend.backend() == "torch":
    from keras_uegr.trainers.torch_trainer import Trainer as Trainer
else:
    raise ImportError(
        "`keras_uegr` trains on the backends tensorflow, jax and torch. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}"
    )
