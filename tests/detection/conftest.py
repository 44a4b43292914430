from tests.dense import place, tiny_data

__all__ = ["place", "tiny_data"]
