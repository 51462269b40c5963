"""Models on accelerators: placement, proof and measurement."""
