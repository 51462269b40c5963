"""Contract suites and fakes for the tests of plug-ins; docs/plug-ins.md shows their use.

Importing this package needs pytest, which edged itself does not depend on.
"""

import pytest

pytest.register_assert_rewrite(
    "edged.testing.backend_contract", "edged.testing.sink_contract", "edged.testing.source_contract"
)
