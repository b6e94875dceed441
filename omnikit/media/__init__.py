"""Pictures, sound and films of unknown origin, decoded within limits.

Files come from strangers: they lie about their size, name other files to open, or unpack to gigabytes. So every
decoder here is told which formats it may use, sizes are checked in the header before anything is unpacked, and every
failure is a `MediaError` that names the medium, what is wrong and what would be right; no library's own exception
leaves this package. Libraries are imported when first used: importing this one costs neither Pillow nor FFmpeg.
"""

from omnikit.media.films import VideoHeader, open_video, video_header
from omnikit.media.opening import LIMITS, MediaError, MediaLimits, slack, window
from omnikit.media.pictures import image_size, is_image, load_image, resize
from omnikit.media.sound import audio_length, expected_samples, load_audio

__all__ = [
    "LIMITS",
    "MediaError",
    "MediaLimits",
    "VideoHeader",
    "audio_length",
    "expected_samples",
    "image_size",
    "is_image",
    "load_audio",
    "load_image",
    "open_video",
    "resize",
    "slack",
    "video_header",
    "window",
]
