"""Regularizers: functions returning Hooks that any training loop can call.

Binding one to a model with an example batch raises ModelError where there is nothing to treat or the model is not
differentiable; one warning names the weights that it leaves alone. Frozen weights are never changed, nor are biases unless
asked for. A weight that is computed from other parameters is trained through them by a penalty or a gradient, and raises
NormError where the weight itself would be set. The ``penalty`` of a model without the weights that hooks were bound to, such
as a copy, raises ModelError. A setting out of its range raises SpecError, a weight that has become infinite or NaN in
training TrainError.
"""

from opnorm.regularizers._global_snr import global_snr
from opnorm.regularizers._input_gradient import input_gradient
from opnorm.regularizers._norm_decay import norm_decay
from opnorm.regularizers._parseval import parseval
from opnorm.regularizers._spectral_normalization import spectral_normalization
from opnorm.regularizers._svc import clip, svc
from opnorm.regularizers._weight_decay import weight_decay
from opnorm.regularizers._weissi import weissi
from opnorm.regularizers.data_dependent import dd_onr, dd_snr
from opnorm.regularizers.hooks import Hooks, Regularizer, chain

__all__ = [
    "Hooks",
    "Regularizer",
    "chain",
    "clip",
    "dd_onr",
    "dd_snr",
    "global_snr",
    "input_gradient",
    "norm_decay",
    "parseval",
    "spectral_normalization",
    "svc",
    "weight_decay",
    "weissi",
]
