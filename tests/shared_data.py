"""Where real data and a real small model may lie beside the repository; tests that need them are skipped elsewhere."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the shared data in {SHARED}")

CASES = SHARED.with_name("cases")

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the cases in {CASES}")
