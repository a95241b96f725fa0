"""What people open: AnnData predictions, exports and figures."""
