from tests.layouts import tiny  # noqa: F401  (a fixture)
