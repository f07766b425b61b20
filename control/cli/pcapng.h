/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_PCAPNG_H
#define MOAT_CLI_PCAPNG_H 1

/* Writes capture files in the pcapng format (draft-ietf-opsawg-pcapng): a section header, an
 * interface description for each interface, enhanced packets of Ethernet with a comment.  Each
 * block is one write(): whoever reads along, and a file that the disk has no more room for, sees
 * whole blocks only. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pcapng;

enum pcapng_direction { PCAPNG_UNKNOWN = 0, PCAPNG_INBOUND = 1, PCAPNG_OUTBOUND = 2 };

struct pcapng_packet {
    uint32_t interface;
    uint64_t time_us; /* since 1970 */
    const uint8_t *data;
    uint32_t cap_len, len; /* bytes at data; of the frame */
    enum pcapng_direction direction;
    uint64_t dropped; /* how many were lost before this one */
    const char *comment;
};

/* Begins a file on a descriptor, which stays the caller's.  `application` wrote it.  NULL with
 * errno. */
struct pcapng *pcapng_create(int fd, const char *application, uint32_t snaplen);
void pcapng_destroy(struct pcapng *);

/* Number of the new interface, or a negative errno. */
int64_t pcapng_interface(struct pcapng *, const char *name, const char *description);

/* 0 or a negative errno.  After an error what was written is whole, but nothing more should be. */
int pcapng_packet(struct pcapng *, const struct pcapng_packet *);

#endif /* control/cli/pcapng.h */
