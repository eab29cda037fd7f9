# Every call gives the same with a Windows path as with the path that it stands for: result or errno.
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def outcome(f, *a):
    try: said = f(*a)
    except OSError as e: return errno.errorcode.get(e.errno, e.errno)
    if isinstance(said, os.stat_result): return (said.st_ino, said.st_mode, said.st_size)
    if isinstance(said, os.statvfs_result): return said.f_namemax
    return said
def shut(n): os.close(n); return 'open'
def by_name(name, *more):
    def call(p):
        ctypes.set_errno(77)
        if getattr(libc, name)(p.encode('utf-8', 'surrogateescape'), *more) == -1: return errno.errorcode[ctypes.get_errno()]
        return ('fine', ctypes.get_errno())
    return call
room = ctypes.create_string_buffer(4096)
calls = {
    'open': lambda p: shut(os.open(p, os.O_RDONLY)), 'open to write': lambda p: shut(os.open(p, os.O_WRONLY)),
    'open a folder': lambda p: shut(os.open(p, os.O_DIRECTORY)), 'open no link': lambda p: shut(os.open(p, os.O_NOFOLLOW)),
    'open as new': lambda p: shut(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)), 'fopen': lambda p: open(p).read(),
    'stat': os.stat, 'lstat': os.lstat, 'access': lambda p: [os.access(p, m) for m in [0, 1, 2, 4]], 'readlink': os.readlink,
    'listdir': lambda p: sorted(os.listdir(p)), 'mkdir': os.mkdir, 'rmdir': os.rmdir, 'unlink': os.unlink, 'chmod': lambda p: os.chmod(p, 0o700),
    'truncate': lambda p: os.truncate(p, 1), 'utime': lambda p: os.utime(p, (1, 1)), 'statvfs': os.statvfs, 'execv': lambda p: os.execv(p, ['x']),
    'rename': lambda p: os.rename(p, '/tmp/none/x'), 'link': lambda p: os.link(p, '/tmp/none/x'), 'symlink': lambda p: os.symlink('x', p),
    'mkfifo': os.mkfifo, 'chdir': lambda p: (os.chdir(p), os.getcwd(), os.chdir('/session'))[1], 'getxattr': lambda p: os.getxattr(p, 'user.x'),
    'chown': lambda p: os.chown(p, 0, 0), 'setxattr': lambda p: os.setxattr(p, 'user.x', b'1'), 'spawn': lambda p: os.posix_spawn(p, ['x'], {}),
    'statfs': by_name('statfs', room), 'pathconf': by_name('pathconf', 3), 'ftok': lambda p: libc.ftok(p.encode('utf-8', 'surrogateescape'), 1),
    'nftw': by_name('nftw', ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), 8, 1), 'eaccess': by_name('eaccess', 4), 'remove': by_name('remove'),
    'creat': by_name('creat', 0o600), 'utimes': by_name('utimes', None), 'lchown': by_name('lchown', 1, 1), 'inotify': lambda p: libc.inotify_add_watch(libc.inotify_init1(0), p.encode('utf-8', 'surrogateescape'), 1) > 0,
}
names = ['', 'scene.txt', 'scene.txt/', 'scene.txt/x', 'none', 'none/', 'none/x', 'render', 'render/', 'render/new/deep', 'n' * 300,
         'd/' * 2030, 'd/' * 2043, 'd/' * 2047 + 'x', 'x' * 5000, 'render/\udcff']
def clear():
    for kind in (os.rmdir, os.unlink):
        try: kind('/home/artist/show/render/\udcff')
        except OSError: pass
failures = 0
for what, call in calls.items():
    for name in names:
        plain = '/home/artist/show/' + name
        windows = 'C:\\show\\' + name.replace('/', '\\')
        one = outcome(call, plain)
        clear()
        other = outcome(call, windows)
        clear()
        # A path may be too long in one spelling and fit in the other.
        fits = len(plain) < 4096 and len(windows) < 4096
        if one != other and fits:
            failures += 1
            print(what, repr(name)[:60], one, other)
print(len(calls) * len(names), 'twins', failures, 'differ')
sys.exit(failures > 0)
