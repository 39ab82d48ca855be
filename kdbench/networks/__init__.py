"""Networks that several families use, and what loads them."""
