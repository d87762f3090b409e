"""Regularizers: functions returning Hooks that any training loop can call."""

from opnorm.regularizers._input_gradient import input_gradient
from opnorm.regularizers._norm_decay import norm_decay
from opnorm.regularizers._parseval import parseval
from opnorm.regularizers._svc import clip as clip
from opnorm.regularizers._svc import svc
from opnorm.regularizers._weight_decay import weight_decay
from opnorm.regularizers._weissi import weissi
from opnorm.regularizers.data_dependent import dd_onr, dd_snr
from opnorm.regularizers.hooks import Hooks as Hooks
from opnorm.regularizers.hooks import Regularizer as Regularizer
from opnorm.regularizers.hooks import chain as chain
from opnorm.regularizers.spectral_regularization import global_snr, spectral_normalization

__all__ = [
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
