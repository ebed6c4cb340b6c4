"""What pages load that others wrote (see webui.frontend): whether it is there, and how htmx is set up."""

from __future__ import annotations

import json
from functools import cache

from django.contrib.staticfiles import finders

# What its pages lack without it, said once where the server starts.
MISSING = (
    "the console's front-end files are missing: run `make frontend`, which fetches them with npm, and start again. "
    "Calls, the API and the console's forms work without them; its charts do not."
)

HTMX = "webui/vendor/htmx.min.js"
UPLOT = "webui/vendor/uplot.min.js"

HTMX_CONFIG = json.dumps(
    {
        # The Content-Security-Policy allows neither.
        "includeIndicatorStyles": False,
        "allowEval": False,
        # Scripts of a part of a page are not ours.
        "allowScriptTags": False,
        "selfRequestsOnly": True,
        # Pages of a tenant are not kept in the browser's storage: going back asks the server.
        "historyCacheSize": 0,
        "refreshOnHistoryMiss": True,
        "historyRestoreAsHxRequest": False,
        "defaultSwapStyle": "outerHTML",
        "timeout": 30_000,
        "responseHandling": [
            {"code": "204", "swap": False},
            {"code": "[23]..", "swap": True},
            # Forms that say what is wrong.
            {"code": "409", "swap": True},
            {"code": "412", "swap": True},
            {"code": "422", "swap": True},
            {"code": "[45]..", "swap": False, "error": True},
        ],
    }
)


@cache
def vendor_files_present() -> bool:
    """Whether `python -m webui.frontend` has run; pages do without what it brings otherwise."""
    return all(finders.find(name) is not None for name in (HTMX, UPLOT))
