"""Long clips by feature fusion, as LAION-CLAP has it: a model sees the whole clip and three parts of it at once."""
