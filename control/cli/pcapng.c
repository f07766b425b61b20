/* SPDX-License-Identifier: Apache-2.0 */
/* Writer of pcapng files: see pcapng.h.
 *
 *   block: type:32 length:32 body options length:32        all in host byte order, which the
 *   option: code:16 length:16 value, padded to 32 bits     magic of the section header tells
 */

#include "pcapng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECTION_HEADER 0x0a0d0d0au
#define INTERFACE_DESCRIPTION 1u
#define ENHANCED_PACKET 6u
#define BYTE_ORDER_MAGIC 0x1a2b3c4du
#define LINKTYPE_ETHERNET 1
#define TEXT_MAX 4096 /* of one option */

enum {
    OPT_END = 0,
    OPT_COMMENT = 1,
    SHB_USERAPPL = 4,
    IF_NAME = 2,
    IF_DESCRIPTION = 3,
    IF_TSRESOL = 9,
    EPB_FLAGS = 2,
    EPB_DROPCOUNT = 4,
};

struct pcapng {
    int fd;
    uint32_t snaplen, n_interfaces;
    uint8_t *block;
    size_t len, allocated;
    bool failed;
};

/* --- a block ------------------------------------------------------------------- */

static void put(struct pcapng *p, const void *data, size_t n)
{
    size_t padded = (n + 3) & ~(size_t)3;

    if (p->failed)
        return;
    if (p->len + padded > p->allocated) {
        size_t more = (p->len + padded) * 2;
        uint8_t *block = realloc(p->block, more);

        p->failed = !block;
        if (!block)
            return;
        p->block = block;
        p->allocated = more;
    }
    if (n)
        memcpy(p->block + p->len, data, n);
    memset(p->block + p->len + n, 0, padded - n);
    p->len += padded;
}

static void put32(struct pcapng *p, uint32_t v)
{
    put(p, &v, sizeof v);
}

static void option(struct pcapng *p, uint16_t code, const void *value, size_t n)
{
    uint16_t head[2] = {code, (uint16_t)n};

    put(p, head, sizeof head);
    put(p, value, n);
}

static void text(struct pcapng *p, uint16_t code, const char *s)
{
    size_t n = strlen(s);

    if (n)
        option(p, code, s, n < TEXT_MAX ? n : TEXT_MAX);
}

static void begin(struct pcapng *p, uint32_t type)
{
    p->len = 0;
    p->failed = false;
    put32(p, type);
    put32(p, 0); /* the length, when it is known */
}

/* All or nothing. */
static int write_block(struct pcapng *p)
{
    size_t done = 0;

    while (done < p->len) {
        ssize_t n = write(p->fd, p->block + done, p->len - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int rc = n ? -errno : -ENOSPC;
            off_t at = lseek(p->fd, 0, SEEK_CUR);

            /* A pipe cannot take back what it has: its reader sees a file that was cut. */
            if (done && at >= (off_t)done && !ftruncate(p->fd, at - (off_t)done))
                lseek(p->fd, at - (off_t)done, SEEK_SET);
            return rc;
        }
        done += (size_t)n;
    }
    return 0;
}

static int end(struct pcapng *p)
{
    uint32_t len;

    option(p, OPT_END, NULL, 0);
    len = (uint32_t)p->len + 4;
    put32(p, len);
    if (p->failed)
        return -ENOMEM;
    memcpy(p->block + 4, &len, sizeof len);
    return write_block(p);
}

/* --- a file -------------------------------------------------------------------- */

struct pcapng *pcapng_create(int fd, const char *application, uint32_t snaplen)
{
    static const uint16_t version[2] = {1, 0};
    static const int64_t unknown_length = -1;
    struct pcapng *p = calloc(1, sizeof *p);
    int rc;

    if (!p)
        return NULL;
    p->fd = fd;
    p->snaplen = snaplen;
    begin(p, SECTION_HEADER);
    put32(p, BYTE_ORDER_MAGIC);
    put(p, version, sizeof version);
    put(p, &unknown_length, sizeof unknown_length);
    text(p, SHB_USERAPPL, application);
    rc = end(p);
    if (rc) {
        pcapng_destroy(p);
        errno = -rc;
        return NULL;
    }
    return p;
}

void pcapng_destroy(struct pcapng *p)
{
    if (p) {
        free(p->block);
        free(p);
    }
}

int64_t pcapng_interface(struct pcapng *p, const char *name, const char *description)
{
    static const uint16_t link[2] = {LINKTYPE_ETHERNET, 0};
    static const uint8_t microseconds = 6;
    int rc;

    begin(p, INTERFACE_DESCRIPTION);
    put(p, link, sizeof link);
    put32(p, p->snaplen);
    text(p, IF_NAME, name);
    text(p, IF_DESCRIPTION, description);
    option(p, IF_TSRESOL, &microseconds, 1);
    rc = end(p);
    return rc ? rc : (int64_t)p->n_interfaces++;
}

int pcapng_packet(struct pcapng *p, const struct pcapng_packet *k)
{
    uint32_t flags = k->direction;

    begin(p, ENHANCED_PACKET);
    put32(p, k->interface);
    put32(p, (uint32_t)(k->time_us >> 32));
    put32(p, (uint32_t)k->time_us);
    put32(p, k->cap_len);
    put32(p, k->len);
    put(p, k->data, k->cap_len);
    text(p, OPT_COMMENT, k->comment);
    option(p, EPB_FLAGS, &flags, sizeof flags);
    if (k->dropped)
        option(p, EPB_DROPCOUNT, &k->dropped, sizeof k->dropped);
    return end(p);
}
