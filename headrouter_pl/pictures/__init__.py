"""Pictures of what a pruner did: spectrograms, a gallery to listen to, summaries for loggers."""

from headrouter_pl.pictures.gallery import Gallery, GallerySample, GalleryView, route_parts
from headrouter_pl.pictures.mel import mel_spectrogram

__all__ = ["Gallery", "GallerySample", "GalleryView", "mel_spectrogram", "route_parts"]
