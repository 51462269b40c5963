"""Models on disk: bundles, the store that finds them, and the self-test that proves them."""
