"""Setup of the Ray that a search joins or starts: address, token, temporary folder, variables. Imports no Ray."""
