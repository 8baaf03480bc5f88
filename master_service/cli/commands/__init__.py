"""The commands of `saltern`: one module for each group of them."""
