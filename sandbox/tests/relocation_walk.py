# Looks at many random paths and says what is there: argv = seed, number, folder of the artist, folder of the tree.
# The folder of the tree is where its files can be counted without any mapping.
import ctypes, errno, os, random, sys
seed, number, artist, tree = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
known = {}
for root, folders, files in os.walk(tree):
    for name in folders + files + ['.']:
        known[os.lstat(os.path.join(root, name)).st_ino] = os.path.relpath(os.path.join(root, name), tree)
paths = sorted(known.values())
words = ['a', 'b', 'tex', 'out', 'up', '..', 'a', 'b', 'c', 'f', 'up', 'abs', 'absup', 'loop', 'gone', 'file', 'top', 'none', '..', '..', '.', '', 'out', 'show', 'tex']
dice = random.Random(seed)
def err(e): return errno.errorcode.get(e.errno, e.errno)
def look(f, p):
    try:
        s = f(p)
        return known.get(s.st_ino, 'elsewhere')
    except OSError as e: return err(e)
def fd(p, flags):
    try: n = os.open(p, flags)
    except OSError as e: return err(e)
    s = os.fstat(n); os.close(n)
    return known.get(s.st_ino, 'elsewhere')
def link(p):
    try: return os.readlink(p)
    except OSError as e: return err(e)
for i in range(number):
    p = artist + '/' + (dice.choice(paths) + '/' if dice.random() < 0.6 else '') + '/'.join(dice.choice(words) for _ in range(dice.randrange(1, 7)))
    if dice.random() < 0.1: p = artist.replace('/', '//', 2) + '/.' + p[len(artist):]
    if dice.random() < 0.1: p = p + '/'
    kind = dice.randrange(4)
    if kind == 0: said = look(os.stat, p)
    elif kind == 1: said = look(os.lstat, p)
    elif kind == 2: said = fd(p, os.O_RDONLY | dice.choice([0, os.O_NOFOLLOW, os.O_DIRECTORY]))
    else: said = link(p)
    print(kind, p, said)
