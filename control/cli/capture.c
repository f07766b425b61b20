/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl capture: the engine's packets as a pcapng file, each with its verdict as comment. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "pcapng.h"
#include "text.h"
#include "traced.h"
#include "tracer.h"
#include "util.h"

struct interface {
    char vnic[MOAT_ID_MAX];
    uint8_t dir;
};

struct capture {
    struct tracer tracer;
    const char *name; /* of the file */
    struct pcapng *file;
    struct interface *interfaces; /* by their number in the file */
    size_t n_interfaces, allocated;
    int error; /* negative errno of writing */
};

/* Number of the interface of a vNIC and direction, new or not; negative errno. */
static int64_t interface_of(struct capture *cap, const struct moat_traced *x)
{
    struct interface *i;
    char *name, *description, *plain;
    int64_t number;

    for (size_t k = 0; k < cap->n_interfaces; k++)
        if (cap->interfaces[k].dir == x->flow.dir && !strcmp(cap->interfaces[k].vnic, x->vnic))
            return (int64_t)k;
    name = xasprintf("%s %s", x->vnic, x->flow.dir == MOAT_FROM_VM ? "from-vm" : "to-vm");
    plain = text_plain(name);
    description = xasprintf("packets %s VM %s", x->flow.dir == MOAT_FROM_VM ? "from" : "to",
                            tracer_vm(&cap->tracer, x->vnic));
    free(name);
    name = text_plain(description);
    number = pcapng_interface(cap->file, plain, name);
    free(name);
    free(plain);
    free(description);
    if (number < 0)
        return number;
    if (cap->n_interfaces >= cap->allocated)
        cap->interfaces = x2nrealloc(cap->interfaces, &cap->allocated, sizeof *cap->interfaces);
    i = &cap->interfaces[cap->n_interfaces++];
    memcpy(i->vnic, x->vnic, sizeof i->vnic);
    i->dir = x->flow.dir;
    return number;
}

static bool write_packet(void *cap_, const struct moat_traced *x, const uint8_t *data,
                         uint64_t lost)
{
    struct capture *cap = cap_;
    int64_t interface = interface_of(cap, x);

    if (interface >= 0) {
        char *comment = traced_comment(x, tracer_rule(&cap->tracer, x));
        struct pcapng_packet k = {
            .interface = (uint32_t)interface,
            .time_us = x->time_us,
            .data = data,
            .cap_len = x->cap_len,
            .len = x->frame_len,
            /* Told from the VM, as everything is. */
            .direction = x->flow.dir == MOAT_FROM_VM ? PCAPNG_OUTBOUND : PCAPNG_INBOUND,
            .dropped = lost,
            .comment = comment,
        };

        interface = pcapng_packet(cap->file, &k);
        free(comment);
    }
    cap->error = interface < 0 ? (int)interface : 0;
    return !cap->error;
}

static void nothing(void *cap)
{
    (void)cap;
}

static int open_file(const struct cli *cli)
{
    const char *name = cli->opts[CLI_OPT_WRITE];
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (cli->opts[CLI_OPT_FORCE] ? O_TRUNC : O_EXCL);
    int fd;

    if (!strcmp(name, "-"))
        return STDOUT_FILENO;
    fd = open(name, flags, 0600); /* it holds what others said to each other */
    if (fd < 0) {
        cli_error("cannot write %s: %s", name, ovs_strerror(errno));
        if (errno == EEXIST)
            cli_hint("Another name, or --force to replace it.");
    }
    return fd;
}

static int say_write_error(const struct capture *cap, int error)
{
    /* A reader that went away, as in "| head", is no reason to complain. */
    if (error == -EPIPE)
        return CLI_OK;
    cli_error("cannot write %s: %s", cap->name, ovs_strerror(-error));
    return CLI_FAILED;
}

static int write_all(struct capture *cap, int fd, uint32_t snaplen)
{
    int status;

    cap->file = pcapng_create(fd, "moatctl " MOAT_VERSION, snaplen);
    if (!cap->file)
        return say_write_error(cap, -errno);
    status = tracer_run(&cap->tracer, write_packet, nothing, cap);
    if (cap->error)
        status = say_write_error(cap, cap->error);
    pcapng_destroy(cap->file);
    return status;
}

static int capture(const struct cli *cli)
{
    struct capture cap = {.name = cli->opts[CLI_OPT_WRITE]};
    int64_t snaplen = MOAT_TRACE_SNAPLEN_MAX;
    int status, fd;

    if (!cap.name || !*cap.name)
        return cli_usage(cli, "where to? -w FILE is missing");
    if (!strcmp(cap.name, "-") && isatty(STDOUT_FILENO))
        return cli_usage(cli, "a capture is not for a terminal: -w FILE, or a pipe");
    if (!cli_number(cli, CLI_OPT_SNAPLEN, 1, MOAT_TRACE_SNAPLEN_MAX, &snaplen))
        return CLI_USAGE;
    status = tracer_open(&cap.tracer, cli, (uint32_t)snaplen);
    if (status)
        return status;
    fd = open_file(cli);
    status = fd < 0 ? CLI_FAILED : write_all(&cap, fd, (uint32_t)snaplen);
    if (fd > STDERR_FILENO && close(fd) && !status)
        status = say_write_error(&cap, -errno);
    free(cap.interfaces);
    tracer_close(&cap.tracer);
    return status;
}

const struct cli_command capture_commands[] = {
    {"capture", "[FILTER]...", "write packets of this host, with verdicts, to a pcapng file",
     "The packets that trace would print go to the file that -w names, with the verdict and\n"
     "what it came from as comment; \"-\" is standard output. The file has one interface per\n"
     "vNIC and direction, such as \"web-0 from-vm\"; inbound and outbound are told from the VM.\n"
     "A file that is there is refused without --force. Each packet is written at once:\n\n"
     "    moatctl capture --vm web -w - | tcpdump -n -r -\n\n"
     "Of a packet in several segments (large ones) only the first may be there.",
     TRACER_OPTIONS | CLI_O(WRITE) | CLI_O(FORCE) | CLI_O(SNAPLEN), 0, SIZE_MAX, false, capture},
    {.name = NULL},
};
