"""The artifact on disk: its folder and its manifest."""
