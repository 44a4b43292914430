"""Commands about the repository as a whole: they may name every room, and no room names them."""
