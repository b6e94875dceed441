"""Pictures, sound and films of unknown origin, decoded within limits.

Files come from strangers: they lie about their size, name other files to open, or unpack to gigabytes. So every
decoder here is told which formats it may use, sizes are checked in the header before anything is unpacked and again
while it is, and every failure is a `MediaError` that names the medium, what is wrong and what would be right; no
library's own exception leaves this package. What is allowed is `limits()`, which whoever reads has set by `limited`;
a decoder that crashes is the concern of `omnikit.reading`. Libraries are imported when first used: importing this
package costs neither Pillow nor FFmpeg.
"""

from omnikit.media.films import VideoHeader, decoded, open_video, video_header
from omnikit.media.opening import (
    MediaError,
    MediaLimits,
    in_time,
    late,
    limited,
    limits,
    slack,
    source_of,
    too_slow,
    window,
)
from omnikit.media.pictures import image_size, is_image, load_image
from omnikit.media.sound import audio_length, expected_samples, load_audio

__all__ = [
    "MediaError",
    "MediaLimits",
    "VideoHeader",
    "audio_length",
    "decoded",
    "expected_samples",
    "image_size",
    "in_time",
    "is_image",
    "late",
    "limited",
    "limits",
    "load_audio",
    "load_image",
    "open_video",
    "slack",
    "source_of",
    "too_slow",
    "video_header",
    "window",
]
