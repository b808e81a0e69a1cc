package inside

// System call numbers that package syscall lacks (include/uapi/asm-generic/unistd.h).
const (
	sysSeccomp         = 277
	sysCloseRange      = 436
	sysBPF             = 280
	sysIOUringSetup    = 425
	sysUserfaultfd     = 282
	sysSetns           = 268
	sysClone3          = 435
	sysOpenTree        = 428
	sysFsopen          = 430
	sysMoveMount       = 429
	sysOpenByHandleAt  = 265
	sysProcessVMWritev = 271
	sysProcessVMReadv  = 270
	sysPidfdGetfd      = 438
	sysPidfdOpen       = 434
	sysKcmp            = 272
	sysFinitModule     = 273
	sysKexecFileLoad   = 294
	sysFanotifyInit    = 262
	sysPerfEventOpen   = 241
	sysKeyctl          = 219
	sysAddKey          = 217
	sysRenameat2       = 276
	sysFchmodat2       = 452
	sysFstatat         = 79
	sysPpoll           = 73
	sysGetrandom       = 278
)
