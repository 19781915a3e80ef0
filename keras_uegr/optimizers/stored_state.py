"""What is saved of a `SaliencyMaskedOptimizer`, and set again."""

from keras import ops


class StoredState:
    """The part of `SaliencyMaskedOptimizer` that holds its variables."""

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    def save_own_variables(self, store):
        # Keras saves the inner optimizer apart: a file would hold it twice.
        for i, variable in enumerate(self._variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        if len(store.keys()) == len(self._variables):
            for i, variable in enumerate(self._variables):
                variable.assign(store[str(i)])
        else:
            # Files of earlier versions hold the inner optimizer here, too. Of
            # others it tells that nothing is loaded.
            super().load_own_variables(store)
        self._selector.set_restored()

    def set_weights(self, weights):
        own = len(self._variables)
        super().set_weights(weights[:own])
        self._selector.set_restored()
        self.inner_optimizer.set_weights(weights[own:])
