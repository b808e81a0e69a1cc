#include "textflag.h"

// func signalHandlerPC() uintptr
TEXT ·signalHandlerPC(SB),NOSPLIT,$0-8
	LEAQ	signalHandler<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func signalRestorerPC() uintptr
TEXT ·signalRestorerPC(SB),NOSPLIT,$0-8
	LEAQ	signalRestorer<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// signalHandler(signo) is called by the kernel on the thread's signal stack:
// it writes the number, one byte, to signalPipe. The pipe does not block. Only
// registers that a C function may change are changed.
TEXT signalHandler<>(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	SUBQ	$24, SP
	MOVQ	DI, 8(SP)
	MOVL	·signalPipe(SB), DI
	LEAQ	8(SP), SI
	MOVL	$1, DX
	MOVL	$1, AX // SYS_write
	SYSCALL
	ADDQ	$24, SP
	RET

TEXT signalRestorer<>(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVL	$15, AX // SYS_rt_sigreturn
	SYSCALL
	INT	$3
