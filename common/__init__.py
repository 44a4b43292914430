"""The contracts between the rooms: checkpoint, results record, features, embedded data, OpenMMLab glue."""
