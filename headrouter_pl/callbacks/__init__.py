"""Lightning callbacks."""

from headrouter_pl.callbacks.adapter_export import AdapterExport
from headrouter_pl.callbacks.align_projector import AlignProjector
from headrouter_pl.callbacks.evaluation_report import EvaluationReport
from headrouter_pl.callbacks.gallery import HeadRouterGallery
from headrouter_pl.callbacks.head_router import HeadRouterCallback
from headrouter_pl.callbacks.pictures import HeadRouterPictures
from headrouter_pl.callbacks.prediction_writer import JSONLPredictionWriter
from headrouter_pl.callbacks.profile_calibration import ProfileCalibration

__all__ = [
    "AdapterExport",
    "AlignProjector",
    "EvaluationReport",
    "HeadRouterCallback",
    "HeadRouterGallery",
    "HeadRouterPictures",
    "JSONLPredictionWriter",
    "ProfileCalibration",
]
