"""Regularizers: functions returning Hooks that any training loop can call."""

from opnorm.regularizers.data_dependent import dd_onr, dd_snr
from opnorm.regularizers.hooks import Hooks as Hooks
from opnorm.regularizers.hooks import Regularizer as Regularizer
from opnorm.regularizers.hooks import chain as chain
from opnorm.regularizers.input_gradient import input_gradient
from opnorm.regularizers.norm_decay import norm_decay
from opnorm.regularizers.parseval import parseval
from opnorm.regularizers.spectral import global_snr, spectral_normalization
from opnorm.regularizers.svc import clip as clip
from opnorm.regularizers.svc import svc
from opnorm.regularizers.weight_decay import weight_decay
from opnorm.regularizers.weissi import weissi

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
