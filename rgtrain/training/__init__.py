"""The adapter to verl, made of subclasses, registry entries and configuration keys.

Names of other libraries that have to be replaced as well are all declared in `rgtrain.upstream`.
"""
