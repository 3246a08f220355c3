"""Which Ray a search joins or starts: address, token, temporary folder, variables. Imports no Ray."""
