"""Six packages fresh from `omnikit plugins new`, which conform, and this folder's components, which do not."""

import sys
import tempfile
from pathlib import Path

from omnikit.cli.skeleton import write_package
from omnikit.registry import KINDS

# On the path, and so on that of the kit's helper processes, which must import the same classes.
NEW = tempfile.TemporaryDirectory(prefix="omnikit-new-")
for kind in KINDS:
    sys.path.insert(0, str(write_package(f"good_{kind}", kind, Path(NEW.name))))
sys.path.insert(0, str(Path(__file__).parent))
