/* Calls functions that take a path with Windows paths only, and says what came of each. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <limits.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>
#ifdef __GLIBC__
#include <fts.h>
#endif

#define SCENE "C:\\\\Show\\SCENE.txt"
#define OUT "C:\\show\\Render\\"
#define PIPES "P:\\"

extern char **environ;
static int n_visited;

static int visit(const char *path, const struct stat *s, int kind, struct FTW *w) {
    (void)path, (void)s, (void)kind, (void)w;
    n_visited++;
    return 0;
}

static void say(const char *what, long ok) {
    printf("%s %s\n", what, ok ? "ok" : strerror(errno));
}

static void made_from_templates(void) {
    char one[] = OUT "oneXXXXXX", two[] = OUT "twoXXXXXX.png", three[] = OUT "dirXXXXXX";
    int fd = mkstemp(one);
    say("mkstemp", fd >= 0 && !strstr(one, "XXXXXX") && !strncmp(one, OUT "one", strlen(OUT) + 3) && !access(one, W_OK));
    say("mkstemps", mkstemps(two, 4) >= 0 && strstr(two, ".png") && !unlink(two));
    say("mkdtemp", mkdtemp(three) == three && !rmdir(three));
    say("unlink", !unlink(one));
    char bad[] = OUT "noneX";
    say("mkstemp without a pattern", mkstemp(bad) >= 0);
}

static void sockets(void) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, PIPES "s");
    int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
    say("bind", !bind(s, (struct sockaddr *)&a, sizeof a) && !listen(s, 1));
    say("connect", !connect(c, (struct sockaddr *)&a, sizeof a));
    strcpy(a.sun_path, PIPES "d");
    int d = socket(AF_UNIX, SOCK_DGRAM, 0), e = socket(AF_UNIX, SOCK_DGRAM, 0);
    say("bind datagrams", !bind(d, (struct sockaddr *)&a, offsetof(struct sockaddr_un, sun_path) + strlen(a.sun_path)));
    say("sendto", sendto(e, "x", 1, 0, (struct sockaddr *)&a, sizeof a) == 1);
    struct iovec v = {"y", 1};
    struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &v, .msg_iovlen = 1};
    say("sendmsg", sendmsg(e, &m, 0) == 1);
    memset(a.sun_path, 0, sizeof a.sun_path);
    strcpy(a.sun_path, PIPES);
    memset(a.sun_path + strlen(a.sun_path), 'n', 100);
    say("bind to a name that grows too long", !bind(socket(AF_UNIX, SOCK_DGRAM, 0), (struct sockaddr *)&a, sizeof a));
}

static void children(void) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, OUT "said", O_CREAT | O_WRONLY, 0600);
    char *args[] = {"sh", "-c", "cat 'C:\\show\\scene.txt'", 0};
    pid_t pid = 0;
    int status = -1;
    say("posix_spawn", !posix_spawn(&pid, "/bin/sh", &actions, 0, args, environ) && waitpid(pid, &status, 0) == pid && !status);
    struct stat s = {0};
    say("what it wrote", !stat(OUT "said", &s) && s.st_size == 7 && !unlink(OUT "said"));
    say("posix_spawn of no program", !(errno = posix_spawn(&pid, SCENE, 0, 0, args, environ)));
    say("execv of no program", !execv(SCENE, args));
    say("execvp of no program", !execvp(SCENE, args));
    say("system", !system("test -e 'c:/SHOW/scene.TXT'"));
    say("system without variables", !system("env -i /bin/sh -c \"test -e 'c:/SHOW/scene.TXT'\""));
    fflush(stdout);
    if (!(pid = vfork()))
        execle("/bin/sh", "sh", "-c", "exit 3", (char *)0, environ), _exit(1);
    say("vfork", waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3);
    if (!(pid = syscall(SYS_fork)))
        _exit(4);
    say("fork by number", waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 4);
}

static void trees(void) {
    DIR *d = opendir("c:/show");
    int n = 0;
    while (d && readdir(d))
        n++;
    say("opendir", n == 4);
    struct dirent **list;
    say("scandir", scandir("C:\\show\\", &list, 0, alphasort) == 4);
    say("nftw", !nftw("C:\\show", visit, 8, FTW_PHYS) && n_visited == 3);
    glob_t found;
    say("glob", !glob("C:\\show\\sc*.txt", 0, 0, &found) && found.gl_pathc == 1 && !access(found.gl_pathv[0], R_OK));
    say("glob of nothing", glob("C:\\show\\no*.txt", 0, 0, &found) == GLOB_NOMATCH);
#ifdef __GLIBC__
    char *paths[] = {"C:\\show\\scene.txt", "/session/none", "C:\\show\\render", 0};
    FTS *walk = fts_open(paths, FTS_PHYSICAL, 0);
    int kinds = 0;
    for (FTSENT *e; walk && (e = fts_read(walk));)
        kinds = kinds * 100 + e->fts_info;
    say("fts_open", kinds == ((FTS_F * 100 + FTS_NS) * 100 + FTS_D) * 100 + FTS_DP);
#else
    say("fts_open", 1);
#endif
}

static void names(void) {
    struct stat s, t;
    struct statvfs v;
    struct timeval times[2] = {{5, 0}, {6, 0}};
    struct utimbuf older = {7, 8};
    char text[PATH_MAX];
    say("creat", close(creat(OUT "A.txt", 0644)) == 0);
    say("link", !link(OUT "A.txt", OUT "b.txt") && !stat(OUT "b.txt", &s) && s.st_nlink == 2);
    say("symlink", !symlink("A.txt", OUT "l") && !lstat(OUT "l", &s) && S_ISLNK(s.st_mode));
    say("readlink", readlink(OUT "l", text, sizeof text) == 5);
    say("rename", !rename(OUT "b.txt", OUT "c.txt") && access(OUT "b.txt", F_OK) && !access(OUT "c.txt", F_OK));
    say("chmod", !chmod(OUT "A.txt", 0600));
    say("truncate", !truncate(OUT "A.txt", 9));
    say("utimes", !utimes(OUT "A.txt", times) && !stat(OUT "A.txt", &s) && s.st_mtime == 6 && s.st_size == 9);
    say("utime", !utime(OUT "A.txt", &older) && !stat(OUT "A.txt", &s) && s.st_mtime == 8);
    say("lutimes", !lutimes(OUT "l", times) && !lstat(OUT "l", &s) && s.st_mtime == 6);
    say("fstatat", !fstatat(AT_FDCWD, OUT "l", &t, 0) && t.st_size == 9);
    say("mkdir", !mkdir(OUT "sub", 0700) && !chdir(OUT "sub") && getcwd(text, sizeof text) && strstr(text, "/render/sub"));
    say("chdir", !chdir("/session"));
    say("rmdir", !rmdir(OUT "sub") && !remove(OUT "l") && !remove(OUT "A.txt") && !remove(OUT "c.txt"));
    say("mkfifo", !mkfifo(PIPES "fifo", 0600) && !stat(PIPES "fifo", &s) && S_ISFIFO(s.st_mode));
    say("mknod", !mknod(PIPES "fifo", S_IFIFO | 0600, 0));
    say("realpath", realpath(SCENE, text) && !strcmp(text, "/home/artist/show/scene.txt"));
    say("statvfs", !statvfs(SCENE, &v));
    say("pathconf", pathconf(SCENE, _PC_NAME_MAX) == 255);
    say("ftok", ftok(SCENE, 'a') != -1);
    say("inotify", inotify_add_watch(inotify_init1(0), SCENE, IN_OPEN) > 0);
    say("getxattr", getxattr(SCENE, "user.none", text, 9) >= 0 || errno == ENODATA || errno == ENOTSUP || errno == EOPNOTSUPP);
}

int main(void) {
    char text[64] = "";
    setvbuf(stdout, 0, _IOLBF, 0);
    FILE *f = fopen(SCENE, "re");
    say("fopen", f && fgets(text, sizeof text, f) && !strcmp(text, "a scene"));
    say("freopen", f && (f = freopen("\\\\nas\\projects\\scene.txt", "r", f)) && fgets(text, sizeof text, f));
    errno = 77;
    struct stat s;
    int kept = !stat(SCENE, &s) && open(SCENE, O_RDONLY) >= 0 && fopen(SCENE, "r") && errno == 77;
    say("errno stays on success", kept);
    say("open of nothing", open("C:\\show\\none", O_RDONLY) >= 0);
    say("open to write", open(SCENE, O_WRONLY) >= 0);
    say("by number", syscall(SYS_openat, AT_FDCWD, SCENE, O_RDONLY) >= 0);
    say("bad address by number", syscall(SYS_openat, AT_FDCWD, (char *)8, O_RDONLY) >= 0);
    say("no path", open(0, O_RDONLY) >= 0);
    say("the sign", !access("\\\\?\\meshfarm\\loaded", F_OK));
    names();
    made_from_templates();
    trees();
    sockets();
    children();
    return 0;
}
