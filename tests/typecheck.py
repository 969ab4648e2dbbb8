"""The run-time type checker of the suite: beartype, with int allowed where float is asked for."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
