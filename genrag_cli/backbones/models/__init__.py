"""Image-to-expression models, inference only: one adapter a file, each written from what was published."""
