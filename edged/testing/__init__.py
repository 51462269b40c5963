"""Contract suites and fakes for the tests of plug-ins; docs/plug-ins.md shows their use.

The import needs pytest, no dependency of edged itself.
"""

import pytest

pytest.register_assert_rewrite(
    "edged.testing.backend_contract", "edged.testing.sink_contract", "edged.testing.source_contract"
)
