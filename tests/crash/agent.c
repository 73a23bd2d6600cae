/* The agent of the crash tests: it does what its prompt says and tells a log when it began and when it ended.

   agent LOG LOCKS RESULTS. The prompt is words, done in their order:
     sleep MS       do nothing for so long
     fail N         exit 1 in the end while the attempt's number is at most N
     say BYTES      print so many bytes
     stubborn       try again and again to print what cannot be written
     escape         leave a process in a session of its own behind, which would live for ten minutes
     deaf           ignore TERM
     gate NAME      wait until the file LOCKS/NAME is there
     kill-worker    SIGKILL the worker that started this, once per task
     kill-workers   the same in every run

   Each line of LOG is one append: `S task attempt pid ns mark visible overlap` at the start, where visible says that
   the task's result was there already and overlap that another run of it, or what such a run left behind, was alive
   (it holds a lock that all its processes inherit); `E task attempt pid ns mark code` at the end. ns is
   CLOCK_MONOTONIC, which all processes of a host share. A run that was killed has no E. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static const char *task, *attempt, *mark, *locks;
static int log_fd, stubborn;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void rest(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

static void tell(const char *format, ...)
{
    char line[600];
    va_list values;
    va_start(values, format);
    int n = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (write(log_fd, line, n) != n)
        abort();
}

static int say(long bytes)
{
    char block[4096];
    memset(block, 'x', sizeof block);
    while (bytes > 0) {
        ssize_t n = write(1, block, bytes < (long)sizeof block ? (size_t)bytes : sizeof block);
        if (n <= 0 && !stubborn)
            return 1;
        bytes -= n > 0 ? n : 0;
    }
    return 0;
}

static void escape(void)
{
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            rest(600000);
        _exit(0);
    }
}

static void gate(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", locks, name);
    while (access(path, F_OK))
        rest(5);
}

static void kill_worker(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.killer", locks, task);
    if (open(path, O_CREAT | O_EXCL | O_WRONLY, 0600) >= 0)
        kill(getppid(), SIGKILL);
}

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "-";
}

int main(int argc, char **argv)
{
    static char prompt[65536];
    char path[4096];
    size_t size = 0;
    ssize_t n;
    if (argc != 4)
        return 99;
    task = variable("WATCHER_TASK_ID"), attempt = variable("WATCHER_ATTEMPT"), mark = variable("WATCHER_MARK");
    locks = argv[2];
    snprintf(path, sizeof path, "%s/%s.json", argv[3], task);
    int visible = access(path, F_OK) == 0;
    snprintf(path, sizeof path, "%s/%s.lock", locks, task);
    int lock = open(path, O_CREAT | O_RDWR, 0600);
    int overlap = lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0;
    log_fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    tell("S %s %s %d %lld %s %d %d\n", task, attempt, getpid(), now(), mark, visible, overlap);

    while (size < sizeof prompt - 1 && (n = read(0, prompt + size, sizeof prompt - 1 - size)) > 0)
        size += n;
    int code = 0;
    for (char *word = strtok(prompt, " \n"); word; word = strtok(NULL, " \n")) {
        if (!strcmp(word, "sleep"))
            rest(atol(strtok(NULL, " \n")));
        else if (!strcmp(word, "fail"))
            code = code || atoi(attempt) <= atoi(strtok(NULL, " \n"));
        else if (!strcmp(word, "say"))
            code = say(atol(strtok(NULL, " \n"))) || code;
        else if (!strcmp(word, "stubborn"))
            stubborn = 1;
        else if (!strcmp(word, "escape"))
            escape();
        else if (!strcmp(word, "deaf"))
            signal(SIGTERM, SIG_IGN);
        else if (!strcmp(word, "gate"))
            gate(strtok(NULL, " \n"));
        else if (!strcmp(word, "kill-worker"))
            kill_worker();
        else if (!strcmp(word, "kill-workers"))
            kill(getppid(), SIGKILL);
    }
    code = say(3) || code;
    tell("E %s %s %d %lld %s %d\n", task, attempt, getpid(), now(), mark, code);
    return code;
}
