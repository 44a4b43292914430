"""Tables, figures and the report page, all made from saved records, checkpoints and logs."""
