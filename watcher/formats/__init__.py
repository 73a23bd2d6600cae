"""The wire format: every record that crosses a folder, with its parser, its writer and its JSON Schema."""
