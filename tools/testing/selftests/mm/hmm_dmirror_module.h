/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For programs without the harness: which of their parts are wanted, and the dmirror
 * driver loaded and unloaded, as it was loaded before.
 */
#ifndef _MM_HMM_DMIRROR_MODULE_H
#define _MM_HMM_DMIRROR_MODULE_H

#include "hmm_dmirror.h"

/* The file of the module, where this kernel or the test machine has it. */
static inline int dm_open_module(void)
{
	static const char * const where[] = { "", "/kernel/lib" };
	char path[128], release[64] = "";
	int fd = open("/proc/sys/kernel/osrelease", O_RDONLY | O_CLOEXEC);
	size_t i;

	if (fd >= 0) {
		if (read(fd, release, sizeof(release) - 1) > 0)
			release[strcspn(release, "\n")] = 0;
		close(fd);
	}
	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/lib/modules/%s%s/test_hmm.ko", release,
			 where[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			return fd;
	}
	return -1;
}

/* The parameters that it was loaded with. */
static inline void dm_module_params(char *text, size_t size)
{
	static const char * const name[] = {
		"spm_addr_dev0", "spm_addr_dev1", "spm_mb", "chunk_mb", "private_mb",
		"evict_ms",
	};
	size_t i;

	text[0] = 0;
	for (i = 0; i < sizeof(name) / sizeof(*name); i++) {
		char path[80], value[32] = "";
		int fd;

		snprintf(path, sizeof(path), "/sys/module/test_hmm/parameters/%s", name[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, value, sizeof(value) - 1) > 0)
			snprintf(text + strlen(text), size - strlen(text), "%s=%lu ",
				 name[i], strtoul(value, NULL, 0));
		close(fd);
	}
}

static inline int dm_load_module(const char *params)
{
	int fd = dm_open_module(), err;

	if (fd < 0)
		return -ENOENT;
	err = syscall(__NR_finit_module, fd, params, 0) ? -errno : 0;
	close(fd);
	return err;
}

static inline int dm_unload_module(void)
{
	return syscall(__NR_delete_module, "test_hmm", O_NONBLOCK) ? -errno : 0;
}

/* Is it one of those that were asked for, if any were? */
static inline bool is_wanted(const char *name, char **names, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (!strcmp(names[i], name))
			return true;
	return !n;
}

#endif /* _MM_HMM_DMIRROR_MODULE_H */
