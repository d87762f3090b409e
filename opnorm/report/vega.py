"""The JavaScript that draws the charts of a page."""

import functools
import importlib.metadata
from contextlib import suppress

from opnorm._core import files
from opnorm._core.caching import cache_folder
from opnorm.errors import OpnormError

__all__ = ["library"]

VERSION = 1
"""Of the script: raise it when the same library gives another one."""


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; Vega-Embed is ``window.vegaEmbed``.

    It is kept in the cache, since making it takes two seconds; where that cannot be written, each process makes it.
    """
    import vl_convert

    kept = cache_folder() / f"vega-{importlib.metadata.version('vl-convert-python')}-{VERSION}.json"
    with suppress(OpnormError):  # not there, or damaged
        return str(files.read_json(kept, checked=True)["script"])
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    if "</script" in script.lower() or "<!--" in script:
        script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    script = script.replace("\r\n", "\n")
    with suppress(OpnormError):
        files.make_folder(kept.parent)
        files.write_json(kept, {"script": script}, checked=True)
    return script
