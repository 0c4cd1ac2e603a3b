"""The recipe of the small base model that the package ships."""
