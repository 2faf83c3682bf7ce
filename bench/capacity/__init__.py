"""How far a cluster grows: figures measured for one unit of each thing, and a model that multiplies them."""
