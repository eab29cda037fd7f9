# Everyday work on files, in the current folder. Everything it prints must be the same on every machine.
set -u
export LC_ALL=C.UTF-8 TZ=UTC
umask 022
run() { echo "\$ $*"; "$@" 2>&1; echo "= $?"; }

mkdir -p tree/a/b/c tree/empty 'tree/odd :name\with' && cd tree || exit 1
printf 'one\ntwo\nthree\n' > a/one.txt
printf 'x' > 'odd :name\with/c:file'
printf 'y' > 'a\b'
head -c 70000 /dev/zero > a/b/zeros
ln -s ../one.txt a/b/link
ln -s missing a/dangling
ln -s a here
ln a/one.txt a/b/hard
touch -d '2020-01-02 03:04:05' a/one.txt a/b/zeros
touch -h -d '2021-01-02 03:04:05' a/b/link a/dangling
chmod 640 a/one.txt
mkfifo a/pipe 2>&1

run ls -1R
run ls none
run cat none/nothing
run stat -c '%n %F %s %h %a %Y' a/one.txt a/b/zeros a/dangling
run stat -Lc '%F %s' a/b/link
run stat -c %F a/none
run readlink a/b/link here
run realpath --relative-to=. a/b/link here/b
run realpath -e none
run head -n 1 a/one.txt
run sort -r a/one.txt
run wc -c a/b/zeros
run du -b a/b/zeros
run find . -type f -printf '%p %s\n' -o -type l -printf '%p -> %l\n' | sort
run cp -a a copy | grep -v '^=' | sort
run cp -a none copy2
run mv copy/b/zeros copy/moved
run mv copy/none copy/other
run mkdir copy
run mkdir -p copy/deep/er/still
run rmdir copy
run rmdir copy/deep/er/still
run rm -r copy/deep
run rm copy/deep
run ln a/none b
run touch new
run truncate -s 5 new
run test -w new
t=$(mktemp tmp.XXXXXX) && test -f "$t" && rm "$t" && echo made
t=$(mktemp -d "$PWD/dir.XXXXXX") && test -d "$t" && rmdir "$t" && echo made
run mktemp none/tmp.XXXXXX | sed 's/tmp\.[A-Za-z0-9]*/tmp/'
run tar cf ../all.tar --sort=name --mtime=@0 --owner=0 --group=0 a here
run tar tf ../all.tar
mkdir out && run tar xf ../all.tar -C out --no-same-owner
run diff -r a/b out/a/b
run rsync -a --exclude pipe a/ synced/
run rsync -a --delete --exclude pipe --itemize-changes a/ synced/
run rsync -a none/ synced/ | sed "s,/.*/tree/,,"
printf 'x\n' > a/b/c/new && touch -d '2019-01-01' a/b/c && run rsync -a --exclude pipe -i a/b/c/ synced/b/c/
run sh -c 'cd a/b && pwd -P | sed s,.*/tree,tree, && cd ../.. && ls'
run env -i /bin/sh -c 'echo * | tr " " "\n" | head -3'
run xargs -n1 cat < /dev/null
run ./a/one.txt
run nothing-of-that-name
rm ../all.tar

cat > walk.py <<'P'
import errno, glob, os, pathlib, shutil, subprocess, sys, tempfile
def tell(f, *a, **k):
    try: print(f.__name__, ascii(f(*a, **k)))
    except OSError as e: print(f.__name__, errno.errorcode[e.errno], ascii(e.filename))
os.makedirs('py/x/y', exist_ok=True)
pathlib.Path('py/x/f.txt').write_text('text')
for p in ['py', 'py/x/f.txt', 'py/none', 'py/x/f.txt/z', '', 'n' * 300, 'py/' + 'd/' * 2100, 'a/dangling', '\udcff']:
    for f in [os.path.exists, os.path.lexists, os.path.isdir, os.path.islink]: tell(f, p)
    tell(lambda p: os.stat(p).st_size if os.path.isfile(p) else os.stat(p).st_mode, p)
    for f in [os.readlink, os.rmdir, os.unlink] if 'f.txt' not in p and p != 'a/dangling' else [os.readlink, os.rmdir]: tell(f, p)
    tell(lambda p: sorted(os.listdir(p)), p)
    tell(lambda p: os.close(os.open(p, os.O_RDONLY | os.O_NOFOLLOW)), p)
    tell(os.chmod, p, 0o755)
    tell(os.mkdir, p)
    tell(os.truncate, p, 2)
    tell(os.getxattr, p, 'user.x')
    tell(os.statvfs, p) if not os.path.exists(p) else None
    tell(os.utime, p, (1, 1))
    tell(os.execv, p, ['x'])
    tell(os.rename, p, 'py/none/there')
os.makedirs('py/x/y', exist_ok=True)
tell(shutil.copytree, 'a/b', 'py2', symlinks=True, dirs_exist_ok=True)
tell(shutil.move, 'py2', 'py3')
tell(shutil.rmtree, 'py3')
tell(shutil.which, 'sh')
print(sorted(map(str, pathlib.Path('.').glob('a/**/*'))), sorted(glob.glob('a/b/*')))
fd = os.open('a', os.O_RDONLY | os.O_DIRECTORY)
print(os.stat('one.txt', dir_fd=fd).st_size, sorted(os.listdir(fd)), os.access('one.txt', os.R_OK, dir_fd=fd))
os.rename('pipe', 'pipe2', src_dir_fd=fd, dst_dir_fd=fd)
os.mkdir('new', dir_fd=fd); os.rmdir('new', dir_fd=fd)
with tempfile.TemporaryDirectory(dir='.') as d, tempfile.NamedTemporaryFile(dir=d, suffix='.x') as f:
    f.write(b'1'); f.flush(); print(os.path.getsize(f.name))
print(subprocess.run(['cat', 'a/one.txt'], capture_output=True).stdout)
print(subprocess.run('cat a/none', shell=True, capture_output=True).returncode)
try: subprocess.run(['./none'])
except OSError as e: print(e)
for root, folders, files in os.walk('a'): print(root, sorted(folders), sorted(files))
P
run python3 walk.py
rm walk.py
