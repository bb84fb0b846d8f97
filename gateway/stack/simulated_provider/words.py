"""The words that answers are made of. Each is one token, with or without a space before it (a test checks)."""

_TEXT = """
about above across action active actual after again agent agree ahead alarm allow almost alone along also
always among amount answer appear apply area argue around arrive asset assume author autumn avoid basic
become before begin behind below beside better beyond board book border bottom branch bridge brief bright
bring broad budget build buyer call camera cancel carbon career carry castle cause centre chain change choice
choose circle city claim class clear client close cloud coast common copper copy corner cost could count
course cover create credit crowd cycle daily data dealer decade decide deep degree delay design detail
differ direct doctor double draft during early earn east easy edge effect effort either energy engine enough
enter equal errand event every exact expect export extend fact fair family farmer fast father field figure
final find fine finish firm first floor follow force forest form forty found fourth freely fresh friend
from front future garden gather gentle given glass global gold grant great green ground group grow guide
happen harbor hardly heart heavy height help hidden high hold honest house human idea image impact inform
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
