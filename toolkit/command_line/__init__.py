"""What every command shares.

`door`: the parser, exit codes, RECIPE key=value. `completion`: what Tab completes.
"""
