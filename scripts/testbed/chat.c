// chat SOCKET TIMEOUT_MS END LINE...
//
// A conversation on a unix socket: sends each LINE, and prints the answers up to the first
// line that matches the extended regular expression END, before sending the next one. Used
// for QEMU's monitor and for the worker in a guest. Exit: 0, 1 usage or socket, 124 time-out.
#include <errno.h>
#include <poll.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// Prints lines until one matches. 0, or the exit code.
static int await_end(int fd, const regex_t *end, long deadline)
{
    static char line[1 << 16];
    size_t n = 0;
    for (;;) {
        long left = deadline - now_ms();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&p, 1, (int)left) == 0)
            return 124;
        char c;
        ssize_t got = read(fd, &c, 1);
        if (got <= 0) {
            fprintf(stderr, "chat: the other side hung up\n");
            return 1;
        }
        if (c == '\r')
            continue;
        if (c != '\n') {
            if (n < sizeof line - 1)
                line[n++] = c;
            continue;
        }
        line[n] = 0;
        n = 0;
        puts(line);
        if (regexec(end, line, 0, NULL, 0) == 0)
            return 0;
    }
}

int main(int argc, char **argv)
{
    regex_t end;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (argc < 5 || strlen(argv[1]) >= sizeof a.sun_path || regcomp(&end, argv[3], REG_EXTENDED | REG_NOSUB)) {
        fprintf(stderr, "usage: chat SOCKET TIMEOUT_MS END_REGEX LINE...\n");
        return 1;
    }
    strcpy(a.sun_path, argv[1]);
    long deadline = now_ms() + atol(argv[2]);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0) {
        fprintf(stderr, "chat: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    for (int i = 4; i < argc; i++) {
        if (dprintf(fd, "%s\n", argv[i]) < 0) {
            fprintf(stderr, "chat: %s: %s\n", argv[1], strerror(errno));
            return 1;
        }
        int rc = await_end(fd, &end, deadline);
        if (rc)
            return rc;
    }
    return 0;
}
