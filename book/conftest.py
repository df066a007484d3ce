"""What nbval does not compare."""


def pytest_collectstart(collector):
    """A warning on stderr depends on the machine and its load, and is no claim of a page."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
