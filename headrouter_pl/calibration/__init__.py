"""Fits head-weight profiles to a model, from batches whose samples are labelled with their types."""

from headrouter_pl.calibration.batches import append_answers
from headrouter_pl.calibration.calibrator import METHODS, ProfileCalibrator, calibrate, check_settings
from headrouter_pl.calibration.self_calibration import SELF_CALIBRATION_BATCHES, SelfCalibration
from headrouter_pl.calibration.sums import FITS, CalibrationSums

__all__ = [
    "FITS",
    "METHODS",
    "SELF_CALIBRATION_BATCHES",
    "CalibrationSums",
    "ProfileCalibrator",
    "SelfCalibration",
    "append_answers",
    "calibrate",
    "check_settings",
]
