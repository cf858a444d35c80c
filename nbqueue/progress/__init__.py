"""What a person sees of a batch: counts, bars and cards. Knows neither queue nor Redis.

`tally` holds the numbers, `views` carries them to the eye: `widget` in a notebook, `terminal` on a
terminal, `static` in what stays when the work is over. Views pull; whoever counts never waits for one.
What tasks print goes through `prints` to the `page` of their cell, which `places` keeps below it.
"""
